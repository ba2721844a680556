// Package soak runs the long figures: what `make test` does a few times, many
// times. Each run appends its result to ledger.tsv (commit, what, range,
// result), so that a figure is the sum over runs.
//
//	make soak                 # all of it
//	make soak RUN=Kills       # one
package soak
