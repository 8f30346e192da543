"""Send what runs could not send while their MLflow server was away, and mark the runs of killed processes."""

from stages import command_line
from stages.tracking.runs import send_left_behind


def main() -> None:
    """Send, and say what was sent."""
    quiet = command_line.command_parser(__doc__).parse_args().quiet
    done = send_left_behind()
    if not quiet:
        print("\n".join(done) or "nothing was left to send")


if __name__ == "__main__":
    command_line.run(main)
