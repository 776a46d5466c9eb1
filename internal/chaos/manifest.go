package chaos

import "fmt"

const namespace = "shop"

func podManifest(name, app, node string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {app: %s}}
spec:
  nodeName: %s
  containers: [{name: main, image: none}]
`, name, namespace, app, node)
}

// affinities are those of services.
var affinities = []string{"none", "local", "remote"}

func serviceManifest(app, affinity string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s, annotations: {service.cilium.io/global: "true", service.cilium.io/affinity: %s}}
spec: {selector: {app: %[1]s}, ports: [{port: 80, targetPort: 8080}]}
`, app, namespace, affinity)
}

// policies are those that operators apply and delete, by name.
var policies = map[string]string{
	"clients-of-east": `
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client, io.cilium.k8s.policy.cluster: east}}]
`,
	"web-to-db": `
  endpointSelector: {matchLabels: {app: db}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
`,
	"clients-only-to-web": `
  endpointSelector: {matchLabels: {app: client}}
  egress:
  - toEndpoints: [{matchExpressions: [{key: app, operator: In, values: [web]}, {key: io.cilium.k8s.policy.cluster, operator: Exists}]}]
`,
	"no-db": `
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchExpressions: [{key: io.cilium.k8s.policy.cluster, operator: Exists}]}]
  ingressDeny:
  - fromEndpoints: [{matchLabels: {app: db}}]
`,
}

func policyManifest(name string) string {
	return fmt.Sprintf(`
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: %s, namespace: %s}
spec:%s`, name, namespace, policies[name])
}
