"""python -m dptrain"""

from dptrain.cli import entry

if __name__ == "__main__":
    entry()
