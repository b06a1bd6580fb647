"""`python -m agentd`."""

from agentd.start import main

if __name__ == "__main__":
    main()
