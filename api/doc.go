// Package api is the contract between the parts of Wherry that talk over a
// wire: the messages, the registry of routes with the rule of each, the frames
// of an interactive stream, and the Client that all callers share.
//
// Messages are the structs of package spec and views that join them; there is
// no second model. Lists answer {"index": N, "items": […]} and long-poll with
// ?index=N&wait=30s: the answer comes when the state has moved past N or the
// time is over. Errors answer {"error": {"class", "message"}} with a status
// that follows from the class, and come out of Client as errors that errors.Is
// recognises.
//
// Who may call a route is said by its Rule. A Client reaches the daemon of this
// host by a socket (NewClient), one elsewhere with the certificate of a person
// (NewTLSClient), and from one member another's (NewNodeClient).
//
// The package starts no goroutine of its own except to copy an exec stream.
package api
