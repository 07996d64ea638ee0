# revecho needs nothing but Python; every target works on a fresh machine.

PYTHON = python3

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

test:  ## run all tests
	$(PYTHON) -W error -m unittest -b

.PHONY: help test
