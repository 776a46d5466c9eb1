package main

import (
	"io"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weft-mesh/weft/deploy/install"
)

// The processes of the chart start with flags that they have.
func TestTheChartsFlagsExist(t *testing.T) {
	values, err := install.Values(nil, []string{"cluster.name=east,cluster.id=1,cluster.serviceCIDR=10.96.0.0/12,cluster.ipv6ServiceCIDR=fd00::/112,k8sServiceHost=192.0.2.1", "cluster.podCIDRs={10.244.0.0/16}"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := install.Render("weft-system", "v1", "", values)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, o := range objects {
		containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		for _, c := range containers {
			args, _, err := unstructured.NestedStringSlice(c.(map[string]any), "args")
			if err != nil || len(args) == 0 {
				t.Fatalf("%s: %v, %v", o.GetName(), args, err)
			}
			seen++
			// Kubernetes has replaced variables by then.
			for i := range args {
				args[i] = strings.NewReplacer("$(HOST_IP)", "192.0.2.1", "$(NODE_NAME)", "n1").Replace(args[i])
			}
			root := rootCommand()
			root.SetOut(io.Discard)
			root.SetErr(io.Discard)
			cmd, rest, err := root.Find(args)
			if err != nil || cmd == root {
				t.Errorf("%s: no command %s: %v", o.GetName(), args[0], err)
				continue
			}
			if err := cmd.ParseFlags(rest); err != nil {
				t.Errorf("%s: weft %s: %v", o.GetName(), strings.Join(args, " "), err)
			}
		}
	}
	if seen != 4 {
		t.Errorf("the chart has %d processes, want apiserver, agent, tunnel and dns", seen)
	}
}
