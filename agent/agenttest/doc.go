// Package agenttest is a node in memory, for tests of whoever uses an agent:
// Host implements all that an agent.Agent needs. It keeps agent's contracts,
// checks that the agent keeps its own (one call at a time per task, one process
// at a time per container), and can fail or be observed at every call.
//
// Host starts no goroutine; processes are timers, so that it works in a
// testing/synctest bubble.
package agenttest
