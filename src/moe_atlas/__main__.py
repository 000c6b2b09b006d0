"""`python -m moe_atlas` is the `atlas` command."""

from moe_atlas import stopping


def main() -> None:
    """Run the command line, which takes its time to be imported; a signal ends that too in one line and its code."""
    stopping.end_at_once()
    from moe_atlas.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
