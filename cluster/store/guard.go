//go:build !race

package store

// raceEnabled says whether the program was built with the race detector.
const raceEnabled = false
