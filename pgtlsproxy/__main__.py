"""`python -m pgtlsproxy` is `pgtlsproxy`."""

from pgtlsproxy.cli import main

if __name__ == "__main__":
    main()
