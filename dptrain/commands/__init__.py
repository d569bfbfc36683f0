"""The command line, one command a file: what it is called, which words it takes, what it says of itself.

A declaration (:class:`dptrain.commands.command.Command`) imports nothing that computes. What the command does
stands in :mod:`dptrain.commands.acts`, in a module of the same name, which is imported when the command runs. Help
is made from the declarations.
"""
