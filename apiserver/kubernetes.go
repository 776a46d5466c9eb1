package apiserver

import (
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// dialKubernetes returns the API of the Kubernetes that a kubeconfig file names, or, without
// one, of the cluster in which this process is a pod. It does not connect yet.
func dialKubernetes(kubeconfig string) (kubernetes.Interface, error) {
	var conf *rest.Config
	var err error
	if kubeconfig != "" {
		conf, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	} else {
		conf, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w; outside of a pod, name a kubeconfig file with --kubeconfig", err)
	}
	conf.UserAgent = "weft-apiserver"
	return kubernetes.NewForConfig(conf)
}
