"""What the gate looks at in single images and pairs of them: damage, copies, leaks, duplicates, labels and prompts."""
