// Package compose turns Compose files into a spec.Stack and findings. It is
// the only package that knows Compose, and the only one that imports
// compose-go.
//
// The entry point is Load. It reads the files, guards against input that is
// made to hurt, lets compose-go merge, interpolate and check them, and walks
// the keys as they were written against one table (verdicts.go) that says of
// every key of the Compose specification whether it is honoured, has no effect
// on a cluster, or is refused, and why. Nothing is dropped in silence: what is
// not honoured is a Finding with file, line and path. All problems of the
// input are found in one go where that is possible. docs/compose.md is
// generated from the table.
//
// compose-go's word on what is a valid file is final: whatever it refuses is
// refused here too. What it does not say (lines, the second problem, values it
// does not check) is added by this package; its panics are findings.
//
// The package refuses to fetch anything: no image, no remote include. It reads
// files (files.go and contents.go hold all access to them), no clock and no
// environment besides the one it is given, and starts no goroutine. Load may
// be called concurrently.
package compose
