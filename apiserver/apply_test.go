package apiserver

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/registry"
)

// manifestOf is a manifest of so many services, policies and pods on node n1.
func manifestOf(services, policies, pods int) []byte {
	var text bytes.Buffer
	for i := range services {
		fmt.Fprintf(&text, "apiVersion: v1\nkind: Service\nmetadata:\n  name: web-%d\n  namespace: shop\n  annotations: {service.cilium.io/global: \"true\"}\nspec:\n  selector: {app: web-%d}\n  ports: [{name: http, port: 80, targetPort: 8080}]\n---\n", i, i)
	}
	for i := range policies {
		fmt.Fprintf(&text, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata:\n  name: web-%d\n  namespace: shop\nspec:\n  endpointSelector: {matchLabels: {app: web-%d}}\n  ingress:\n  - fromEndpoints: [{matchLabels: {app: client}}]\n    toPorts: [{ports: [{port: \"8080\", protocol: TCP}]}]\n---\n", i, i)
	}
	for i := range pods {
		fmt.Fprintf(&text, "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web-%d\n  namespace: shop\n  labels: {app: web-%d}\nspec:\n  nodeName: n1\n  containers: [{name: web}]\n---\n", i, i)
	}
	return text.Bytes()
}

// A manifest that takes several transactions is applied as any other: the trail has a line
// for each object, and the caller is told how far it is.
func TestALargeManifestOverTheAPI(t *testing.T) {
	conf, out := config(t), &trail{}
	conf.Log = slog.New(slog.NewTextHandler(out, nil))
	p := start(t, conf)
	admin := p.admin()
	join(t, admin, 1)
	manifest := manifestOf(2100, 10, 0) // a service is two writes
	var told []api.Progress
	ctx := api.WithProgress(t.Context(), func(made api.Progress) { told = append(told, made) })
	planned, err := admin.Apply(ctx, manifest, api.ManifestOptions{DryRun: true})
	if err != nil || len(planned.Objects) != 2110 || len(told) > 0 {
		t.Fatal(err, told)
	}
	applied, err := admin.Apply(ctx, manifest, api.ManifestOptions{})
	if err != nil || len(applied.Objects) != 2110 {
		t.Fatal(err)
	}
	if _, err := admin.DeleteManifest(ctx, manifest, api.ManifestOptions{}); err != nil {
		t.Fatal(err)
	}
	created, deleted := 0, 0
	for _, line := range out.audit() {
		created += strings.Count(line, "user=admin action=created")
		deleted += strings.Count(line, "user=admin action=deleted")
	}
	if created != 2110 || deleted != 2110 {
		t.Errorf("the trail has %d created and %d deleted", created, deleted)
	}
	if left, err := admin.Objects(ctx, "services", ""); err != nil || len(left.Items) > 0 {
		t.Errorf("%d services are left, %v", len(left.Items), err)
	}

	var refused *api.Error
	_, err = admin.Apply(ctx, bytes.Repeat([]byte("#"), registry.MaxManifestBytes+1), api.ManifestOptions{})
	if !errors.As(err, &refused) || refused.Status != http.StatusRequestEntityTooLarge || !strings.Contains(refused.Message, "larger than 16 MiB") {
		t.Errorf("over the bound: %v", err)
	}
}

// BenchmarkApply applies manifests through the API to an embedded etcd, once each.
func BenchmarkApply(b *testing.B) {
	for name, manifest := range map[string][]byte{
		"services2000_policies200":           manifestOf(2000, 200, 0),
		"services4000_policies1000_pods5000": manifestOf(4000, 1000, 5000),
	} {
		b.Run(name, func(b *testing.B) {
			p := start(b, config(b))
			admin := p.admin()
			join(b, admin, 1)
			for b.Loop() {
				if _, err := admin.Apply(b.Context(), manifest, api.ManifestOptions{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if _, err := admin.DeleteManifest(b.Context(), manifest, api.ManifestOptions{}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
