// Package composetest holds, for every key of a Compose file that is honoured,
// two files that differ in nothing else. Tests all along the way of a stack
// use them to show that the key has an effect. It has no goroutines.
package composetest
