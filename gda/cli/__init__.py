"""The command line: parsers of stages and tools, one closing line, exit codes."""
