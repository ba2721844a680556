package agent

// OnFile makes a tell f of every change that it makes to a file.
func OnFile(a *Agent, f func(op string)) { a.effect = f }
