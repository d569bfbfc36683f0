"""What the commands do: words in, plain sentences, tables and JSON out. Imported when a command runs."""
