"""Many tests at once: classes that are harmed, several trainings, and further looks at one test split."""
