from gda.cli import program

program()
