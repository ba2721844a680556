// Package images makes small container images for tests and examples out of
// the node's static busybox. It starts no goroutine and writes no file: an
// image is the bytes of an archive, which `wherry image load` takes.
package images
