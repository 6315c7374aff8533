"""`python -m tests.hasty web …`: the command line, with the rights of all followers looked at in half a second."""

from server.cli import main
from server.push import rights

if __name__ == "__main__":
    rights.TURN_SECONDS = 0.04
    rights.STANDING_SECONDS = 0.0
    main()
