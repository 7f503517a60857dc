"""The configuration: its sections, recipes of classifiers, arms by name, and how it is read and dumped."""
