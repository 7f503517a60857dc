from gda.cli.main import program

program()
