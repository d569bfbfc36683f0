"""The sections of the report: facts and a language in, blocks out."""
