package spec

// Nearest returns which of some names was probably meant by one that is none
// of them, or "" when none is near. Of several the first is taken.
func Nearest(name string, among []string) string {
	best, distance := "", len(name)/3+1
	for _, k := range among {
		if d := EditDistance(name, k); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// EditDistance is the number of edits between a and b, with a swap of
// neighbours as one.
func EditDistance(a, b string) int {
	if max(len(a)-len(b), len(b)-len(a)) > 4 || len(a) > 64 {
		return 64
	}
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
