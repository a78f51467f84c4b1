"""`python -m clipproj`, the same as `clipproj`."""

from clipproj.cli import main

main()
