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
	// RuleManager admits a manager that asks one of its nodes.
	RuleManager Rule = "manager"
)

// Route is one call of the API.
type Route struct {
	// Name identifies the route in the table of handlers and in logs.
	Name string
	// Method and Path as net/http.ServeMux has them.
	Method, Path string
	Rule         Rule
}

// Pattern is the pattern of the route for net/http.ServeMux.
func (r Route) Pattern() string { return r.Method + " " + r.Path }

// Routes is the whole API. A server refuses to start when a route has no
// handler or no rule, and the other way round.
var Routes = []Route{
	{"version", "GET", "/v1/version", RuleAnyone},

	{"stack.list", "GET", "/v1/stacks", RuleOperator},
	{"stack.get", "GET", "/v1/stacks/{stack}", RuleOperator},
	{"stack.put", "PUT", "/v1/stacks/{stack}", RuleOperator},
	{"stack.delete", "DELETE", "/v1/stacks/{stack}", RuleOperator},
	{"stack.status", "GET", "/v1/stacks/{stack}/status", RuleOperator},
	{"stack.plan", "POST", "/v1/plan", RuleOperator},

	{"service.list", "GET", "/v1/services", RuleOperator},
	{"service.get", "GET", "/v1/services/{stack}/{service}", RuleOperator},
	{"service.scale", "POST", "/v1/services/{stack}/{service}/scale", RuleOperator},

	{"task.list", "GET", "/v1/tasks", RuleOperator},
	{"task.get", "GET", "/v1/tasks/{task}", RuleOperator},
	{"task.logs", "GET", "/v1/tasks/{task}/logs", RuleOperator},
	{"task.exec", "POST", "/v1/tasks/{task}/exec", RuleOperator},

	{"node.list", "GET", "/v1/nodes", RuleOperator},
	{"node.get", "GET", "/v1/nodes/{node}", RuleOperator},
	{"network.list", "GET", "/v1/networks", RuleOperator},
	{"volume.list", "GET", "/v1/volumes", RuleOperator},
	{"volume.delete", "DELETE", "/v1/volumes/{volume}", RuleOperator},
	{"event.list", "GET", "/v1/events", RuleOperator},

	{"image.list", "GET", "/v1/images", RuleOperator},
	{"image.load", "POST", "/v1/images/load", RuleOperator},
	{"image.pull", "POST", "/v1/images/pull", RuleOperator},
	{"image.delete", "DELETE", "/v1/images", RuleOperator},

	{"session.watch", "GET", "/v1/sessions/{node}", RuleNode},
	{"session.report", "POST", "/v1/sessions/{node}/report", RuleNode},
	{"content.get", "GET", "/v1/contents/{content}", RuleNode},

	{"node.task.logs", "GET", "/v1/node/tasks/{task}/logs", RuleManager},
	{"node.task.exec", "POST", "/v1/node/tasks/{task}/exec", RuleManager},
}
