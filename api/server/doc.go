// Package server answers the API: as a manager, from the replicated state and
// by proposing commands; as a node, for its own images and the tasks that run
// on it.
//
// It owns the translation between the wire and the state (names into objects,
// objects into views, errors into statuses) and nothing else: no loop, no
// lifecycle. New checks that every route of api.Routes has a handler and a
// rule; Handler gives the http.Handler for one kind of peer. The only
// goroutines are those of net/http and the copies of an exec stream.
package server
