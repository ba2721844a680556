// Package scheduler chooses nodes for tasks: it filters the nodes that can
// take a task, ranks them, and where there is none says why, in counted
// reasons ("3 nodes: not enough memory; 1: drained").
//
// It owns the rules of placement and nothing else: it knows neither the store
// nor what a rollout is, keeps no state between passes and refuses to move or
// to evict. Its entry point is a Board, which stands for the nodes during one
// pass: NewBoard, then any number of Place and Release; Explain says why a task
// finds no node, and how far off the nearest is. Tasks with equal
// requirements are placed by one call, a class, whose cost grows with
// nodes + tasks·log(nodes).
//
// The result depends on the arguments alone, not on the order of the nodes.
// The package reads no clock and starts no goroutine; a Board belongs to one
// goroutine.
package scheduler
