"""`python -m softprompt`"""

from softprompt.cli import main

main()
