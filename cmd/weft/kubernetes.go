package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/deploy/install"
)

// kubernetesPatience bounds how long a command asks Kubernetes for a context.
const kubernetesPatience = 10 * time.Second

// kubernetesConfig is the kubeconfig that kubectl would use.
func kubernetesConfig(file, context string) clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = file
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context})
}

// kubernetesAccess is the access to Kubernetes that kubectl would use.
func kubernetesAccess(file, context string) (*rest.Config, error) {
	conf, err := kubernetesConfig(file, context).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, install.ErrNoCluster
	}
	if err != nil {
		return nil, fmt.Errorf("access to Kubernetes: %w", err)
	}
	conf.UserAgent = "weft"
	return conf, nil
}

// kubernetesContexts are the names of the kubeconfig's contexts; none without a file.
func kubernetesContexts() []string {
	raw, err := kubernetesConfig("", "").RawConfig()
	if err != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(raw.Contexts))
}

// contextOfKubernetes is the context of the operator of a cluster that a context of the
// kubeconfig names; empty: the current one. Without such a context, there is false and the
// error is why, what else was tried.
func contextOfKubernetes(name string, why error) (x api.Context, there bool, err error) {
	raw, err := kubernetesConfig("", "").RawConfig()
	if err != nil || name == "" && raw.CurrentContext == "" || name != "" && raw.Contexts[name] == nil {
		return x, false, why
	}
	conf, err := kubernetesAccess("", name)
	if err != nil {
		return x, true, err
	}
	if name == "" {
		name = raw.CurrentContext
	}
	client, err := kubernetes.NewForConfig(conf)
	if err != nil {
		return x, true, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), kubernetesPatience)
	defer cancel()
	secret, err := client.CoreV1().Secrets(api.SystemNamespace).Get(ctx, api.OperatorSecret, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return x, true, fmt.Errorf("kubernetes cluster %s has no Secret %s/%s: install Weft there (`weft install --kube-context %s`), or wait until its API server runs", name, api.SystemNamespace, api.OperatorSecret, name)
	case apierrors.IsForbidden(err):
		return x, true, fmt.Errorf("kubernetes cluster %s does not let you operate its mesh, for which you need to read Secret %s/%s: %w", name, api.SystemNamespace, api.OperatorSecret, err)
	case err != nil:
		return x, true, fmt.Errorf("kubernetes cluster %s: %w", name, err)
	}
	var file api.Config
	if err := yaml.UnmarshalStrict(secret.Data[api.OperatorContextKey], &file); err != nil {
		return x, true, fmt.Errorf("kubernetes cluster %s: Secret %s/%s holds no contexts: %w", name, api.SystemNamespace, api.OperatorSecret, err)
	}
	if x, err = file.Context(""); err != nil {
		return x, true, fmt.Errorf("kubernetes cluster %s: Secret %s/%s: %w", name, api.SystemNamespace, api.OperatorSecret, err)
	}
	x.Name = name
	return x, true, nil
}
