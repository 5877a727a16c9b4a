"""`python -m cm2_agent`: the command `cm2`, where its script is not on the PATH."""

from cm2_agent.cli import main

if __name__ == "__main__":
    main()
