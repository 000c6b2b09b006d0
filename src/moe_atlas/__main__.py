"""`python -m moe_atlas` is the `atlas` command."""

from moe_atlas.cli import main

if __name__ == "__main__":
    main()
