package store

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

func TestEncodeDecode(t *testing.T) {
	for _, c := range []Command{
		{Time: start, RequestID: "r1", Author: "ann", PutStack: &PutStack{Stack: web("shop", 8080), Base: ptr(uint64(0)), KeepOthers: true}},
		{Time: start, PutContent: &PutContent{ID: "hmac:1", Size: 3, Data: []byte{0, 1, 255}}},
		{Time: start, SetNode: &SetNode{ID: "n1", Availability: ptr(spec.NodeDrain), Labels: map[string]*string{"a": ptr("b"), "c": nil}}},
		{Time: start, Reports: &Reports{}},
	} {
		b, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.Kind(), d)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for _, c := range []Command{{}, {Reports: &Reports{}, ApplyPlan: &ApplyPlan{}}} {
		if _, err := Encode(c); err == nil {
			t.Errorf("%+v was encoded", c)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"", "empty"},
		{"\x00{}", "format 0"},
		{"\x05{}", "format 5, this program knows 1 to 4: upgrade"},
		{"\x01", "EOF"},
		{"\x01{}", "exactly one body"},
		{"\x01null", "exactly one body"},
		{"\x01[]", "cannot unmarshal"},
		{`` + "\x01" + `{"reports":{},"apply_plan":{}}`, "exactly one body"},
		{"\x01" + `{"reports":{}} x`, "behind the value"},
		{"\x01" + `{"reports":{}}{}`, "behind the value"},
		{"\x01" + `{"explode":{}}`, `unknown field "explode"`},
		{"\x01" + `{"reports":{"reports":[{"node":"n","mood":1}]}}`, `unknown field "mood"`},
		{"\x01" + `{"bootstrap":{"cluster_id":"c","incarnation":1,"format":5}}`, "format to 5"},
	} {
		_, err := Decode([]byte(tc.in))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("decode %q: %v, want %q", tc.in, err, tc.want)
		}
	}
}

func TestKindNamesEveryBody(t *testing.T) {
	for kind, c := range map[string]Command{
		"bootstrap": {Bootstrap: &Bootstrap{}}, "put_stack": {PutStack: &PutStack{}}, "remove_stack": {RemoveStack: &RemoveStack{}},
		"scale_service": {ScaleService: &ScaleService{}}, "put_content": {PutContent: &PutContent{}},
		"remove_volumes": {RemoveVolumes: &RemoveVolumes{}}, "set_node": {SetNode: &SetNode{}}, "put_node": {PutNode: &PutNode{}},
		"rollback_stack": {RollbackStack: &RollbackStack{}}, "steer_service": {SteerService: &SteerService{}},
		"set_node_state": {SetNodeState: &SetNodeState{}}, "apply_plan": {ApplyPlan: &ApplyPlan{}}, "reports": {Reports: &Reports{}},
	} {
		if c.Kind() != kind {
			t.Errorf("%s: kind %q", kind, c.Kind())
		}
		b, err := Encode(c)
		if err != nil || !strings.Contains(string(b), `"`+kind+`":`) {
			t.Errorf("%s is encoded as %s (%v)", kind, b, err)
		}
	}
}
