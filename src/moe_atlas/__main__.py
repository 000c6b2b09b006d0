"""`python -m moe_atlas` is the `atlas` command."""

from moe_atlas.system import interruption


def main() -> None:
    """Run the command line, which takes its time to be imported; a signal ends that too in one line and its code."""
    interruption.end_at_once()
    from moe_atlas.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
