# revecho needs nothing but Python; every target works on a fresh machine.

PYTHON = python3

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

test:  ## run all tests
	$(PYTHON) -W error test_revecho.py

hold:  ## hold each kind of thread before each of its lines during a stop; takes a minute or two
	EVERY_LINE=1 $(PYTHON) -W error -m unittest -b -k Interleaving

bench:  ## measure revecho beside the servers that Python's documentation shows
	$(PYTHON) test_revecho.py bench

.PHONY: help test hold bench
