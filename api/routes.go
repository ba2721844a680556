package api

// Rule says who may call a route. Every route has exactly one.
type Rule string

// The rules.
const (
	// RuleAnyone needs no identity at all.
	RuleAnyone Rule = "anyone"
	// RuleOperator admits people and their tools: whoever may open the local
	// socket.
	RuleOperator Rule = "operator"
	// RuleNode admits a node of the cluster, for what concerns itself.
	RuleNode Rule = "node"
	// RuleManager admits a manager that asks one of its nodes, or another
	// manager.
	RuleManager Rule = "manager"
	// RuleRenew admits a node whose certificate may have expired.
	RuleRenew Rule = "renew"
	// RuleLocal admits who may open the local socket, and nobody from elsewhere.
	RuleLocal Rule = "local"
)

// Rules are all rules.
var Rules = []Rule{RuleAnyone, RuleOperator, RuleNode, RuleManager, RuleRenew, RuleLocal}

// Route is one call of the API.
type Route struct {
	// Name identifies the route in the table of handlers and in logs.
	Name string
	// Method and Path as net/http.ServeMux has them.
	Method, Path string
	Rule         Rule
	// Fresh: a manager admits a node only by a table of nodes that was current a
	// moment ago, lest one that is cut off obeys who was removed or demoted since.
	// It is not for what must work while nobody leads, nor for what asks the
	// leader anyway.
	Fresh bool
}

// Pattern is the pattern of the route for net/http.ServeMux.
func (r Route) Pattern() string { return r.Method + " " + r.Path }

// Routes is the whole API. A server refuses to start when a route has no
// handler or no rule, and the other way round.
var Routes = []Route{
	{"version", "GET", "/v1/version", RuleAnyone, false},

	{"stack.list", "GET", "/v1/stacks", RuleOperator, false},
	{"stack.get", "GET", "/v1/stacks/{stack}", RuleOperator, false},
	{"stack.put", "PUT", "/v1/stacks/{stack}", RuleOperator, false},
	{"stack.delete", "DELETE", "/v1/stacks/{stack}", RuleOperator, false},
	{"stack.history", "GET", "/v1/stacks/{stack}/revisions", RuleOperator, false},
	{"stack.rollback", "POST", "/v1/stacks/{stack}/rollback", RuleOperator, false},
	{"stack.status", "GET", "/v1/stacks/{stack}/status", RuleOperator, false},
	{"stack.plan", "POST", "/v1/plan", RuleOperator, false},

	{"service.list", "GET", "/v1/services", RuleOperator, false},
	{"service.get", "GET", "/v1/services/{stack}/{service}", RuleOperator, false},
	{"service.scale", "POST", "/v1/services/{stack}/{service}/scale", RuleOperator, false},
	{"service.rollback", "POST", "/v1/services/{stack}/{service}/rollback", RuleOperator, false},
	{"service.pause", "POST", "/v1/services/{stack}/{service}/pause", RuleOperator, false},
	{"service.resume", "POST", "/v1/services/{stack}/{service}/resume", RuleOperator, false},
	{"service.promote", "POST", "/v1/services/{stack}/{service}/promote", RuleOperator, false},
	{"service.restart", "POST", "/v1/services/{stack}/{service}/restart", RuleOperator, false},
	{"service.run", "POST", "/v1/services/{stack}/{service}/run", RuleOperator, false},

	// What it is about is in the query: a stack, a service or a task, as "of".
	{"why", "GET", "/v1/why", RuleOperator, false},

	{"rebalance.plan", "GET", "/v1/rebalance", RuleOperator, false},
	{"rebalance", "POST", "/v1/rebalance", RuleOperator, false},

	{"task.list", "GET", "/v1/tasks", RuleOperator, false},
	{"task.get", "GET", "/v1/tasks/{task}", RuleOperator, false},
	{"task.logs", "GET", "/v1/tasks/{task}/logs", RuleOperator, false},
	{"task.exec", "POST", "/v1/tasks/{task}/exec", RuleOperator, false},

	{"node.list", "GET", "/v1/nodes", RuleOperator, false},
	{"node.get", "GET", "/v1/nodes/{node}", RuleOperator, false},
	{"node.update", "PATCH", "/v1/nodes/{node}", RuleOperator, false},
	{"node.delete", "DELETE", "/v1/nodes/{node}", RuleOperator, false},
	{"node.leftovers", "GET", "/v1/nodes/{node}/leftovers", RuleOperator, false},
	{"network.list", "GET", "/v1/networks", RuleOperator, false},
	{"network.get", "GET", "/v1/networks/{network}", RuleOperator, false},
	{"network.create", "POST", "/v1/networks", RuleOperator, false},
	{"network.delete", "DELETE", "/v1/networks/{network}", RuleOperator, false},
	{"volume.list", "GET", "/v1/volumes", RuleOperator, false},
	{"volume.get", "GET", "/v1/volumes/{volume}", RuleOperator, false},
	{"volume.create", "POST", "/v1/volumes", RuleOperator, false},
	{"volume.move", "POST", "/v1/volumes/{volume}/move", RuleOperator, false},
	{"volume.backup", "GET", "/v1/volumes/{volume}/data", RuleOperator, false},
	{"volume.restore", "PUT", "/v1/volumes/{volume}/data", RuleOperator, false},
	{"volume.delete", "DELETE", "/v1/volumes/{volume}", RuleOperator, false},
	{"secret.list", "GET", "/v1/secrets", RuleOperator, false},
	{"secret.get", "GET", "/v1/secrets/{name}", RuleOperator, false},
	{"secret.put", "PUT", "/v1/secrets/{name}", RuleOperator, false},
	{"secret.delete", "DELETE", "/v1/secrets/{name}", RuleOperator, false},
	{"config.list", "GET", "/v1/configs", RuleOperator, false},
	{"config.get", "GET", "/v1/configs/{name}", RuleOperator, false},
	{"config.put", "PUT", "/v1/configs/{name}", RuleOperator, false},
	{"config.delete", "DELETE", "/v1/configs/{name}", RuleOperator, false},
	{"event.list", "GET", "/v1/events", RuleOperator, false},

	{"image.list", "GET", "/v1/images", RuleOperator, false},
	{"image.load", "POST", "/v1/images/load", RuleOperator, false},
	{"image.pull", "POST", "/v1/images/pull", RuleOperator, false},
	{"image.delete", "DELETE", "/v1/images", RuleOperator, false},

	{"cluster.status", "GET", "/v1/cluster", RuleOperator, false},
	{"cluster.backup", "GET", "/v1/cluster/backup", RuleOperator, false},
	{"cluster.key", "GET", "/v1/cluster/key", RuleLocal, false},
	{"cluster.token", "POST", "/v1/cluster/tokens/{role}", RuleOperator, false},
	{"cluster.client", "POST", "/v1/cluster/clients/{name}", RuleOperator, false},
	{"cluster.rotate", "POST", "/v1/cluster/ca/rotate", RuleOperator, false},

	{"cluster.join", "POST", "/v1/cluster/join", RuleAnyone, false},
	{"cluster.renew", "POST", "/v1/cluster/renew", RuleRenew, false},

	{"cluster.propose", "POST", "/v1/cluster/propose", RuleManager, false},
	{"cluster.read", "POST", "/v1/cluster/read-index", RuleManager, false},
	{"cluster.alive", "POST", "/v1/cluster/alive", RuleManager, false},

	// A {node} of the rule RuleNode is who calls.
	{"session.watch", "GET", "/v1/sessions/{node}", RuleNode, false},
	{"session.report", "POST", "/v1/sessions/{node}/report", RuleNode, false},
	{"session.beat", "POST", "/v1/sessions/{node}/beat", RuleNode, false},
	{"session.lease", "POST", "/v1/sessions/{node}/lease", RuleNode, false},
	{"session.leave", "POST", "/v1/sessions/{node}/leave", RuleNode, false},
	{"content.get", "GET", "/v1/contents/{content}", RuleNode, true},

	{"node.leave", "POST", "/v1/node/leave", RuleLocal, false},
	{"node.doctor", "GET", "/v1/node/doctor", RuleOperator, false},
	{"node.member", "GET", "/v1/node/member", RuleNode, false},
	{"node.task.logs", "GET", "/v1/node/tasks/{task}/logs", RuleManager, true},
	{"node.task.exec", "POST", "/v1/node/tasks/{task}/exec", RuleManager, true},
	{"node.image.list", "GET", "/v1/node/images", RuleManager, true},
	{"node.image.load", "POST", "/v1/node/images/load", RuleManager, true},
	{"node.image.pull", "POST", "/v1/node/images/pull", RuleManager, true},
	{"node.image.delete", "DELETE", "/v1/node/images", RuleManager, true},

	{"node.volume.size", "GET", "/v1/node/volumes/{volume}/size", RuleManager, true},
	{"node.volume.export", "GET", "/v1/node/volumes/{volume}/data", RuleManager, true},
	{"node.volume.import", "PUT", "/v1/node/volumes/{volume}/data", RuleManager, true},
	// To the node that the volume is to be moved to.
	{"node.volume.give", "GET", "/v1/node/volumes/{volume}/give", RuleNode, false},

	// What this node itself leads traffic to; its neighbours ask.
	{"node.withdrawn", "POST", "/v1/node/withdrawn", RuleNode, false},

	// The images of this node as an OCI registry that can be read only; GET is
	// HEAD, too.
	{"registry", "GET", "/v2/{path...}", RuleNode, false},
}
