// Package bench measures the product from outside, beside what it stands on,
// in one run: a process counts as running when it is seen in /proc. Each
// figure is printed with its counterpart, the ratio, the number of rounds and
// the machine. Nothing is asserted: machines are noisy.
//
//	make bench
package bench
