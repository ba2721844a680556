// Package server answers the API: as a manager, from the replicated state and
// by proposing commands; as a node, for its own images and the tasks that run
// on it.
//
// It owns the translation between the wire and the state (names into objects,
// objects into views, errors into statuses) and nothing else: no loop, no
// lifecycle. New checks that every route of api.Routes has a handler and a
// rule. Handler gives the http.Handler for a socket of this host; Remote that
// for the network, where each call is judged by the certificate of the caller
// and by what the table of nodes says of it at that moment. A worker has no
// state and answers what concerns its host; for the rest it names managers.
// The only goroutines are those of net/http and the copies of an exec stream.
package server
