"""python -m fedstac.cli"""

from fedstac.cli import main

main()
