package admission

import (
	"context"
	"fmt"
	"reflect"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Configuration is the name of the ValidatingWebhookConfiguration. Whoever installs Weft makes
// it, empty, so that it goes with the rest; a Keeper fills it in.
const Configuration = "weft-policies"

// patience is how long the Kubernetes API server waits for an answer: a mesh API server that is
// gone must not make every change slow.
const patience = 3

// How often it is looked at, and after a failure.
const (
	keepTurn  = 30 * time.Second
	keepRetry = 2 * time.Second
)

// Keeper keeps the configuration true while its server leads: it names that server, by the
// node's own address. No service is in between: policies must be judged while there are none.
type Keeper struct {
	// Client returns a client of the cluster that is followed.
	Client func(context.Context) (kubernetes.Interface, error)
	// Failure is what happens with objects while nobody answers: Ignore or Fail.
	Failure string
	// URL is the server's, without a path.
	URL string
	// Bundle are the authorities of its certificate, in PEM: old and new ones.
	Bundle func() []byte
	// Tell gets how the latest attempt ended.
	Tell func(error)
}

// Run works until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.Tell(nil) // another one tells by now
	for ctx.Err() == nil {
		pause := keepTurn
		err := k.keep(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if k.Tell(err); err != nil {
			pause = keepRetry
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

func (k *Keeper) keep(ctx context.Context) error {
	client, err := k.Client(ctx)
	if err != nil {
		return err
	}
	all := client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	is, err := all.Get(ctx, Configuration, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("there is no ValidatingWebhookConfiguration %s", Configuration)
	}
	if err != nil {
		return fmt.Errorf("ValidatingWebhookConfiguration %s: %w", Configuration, err)
	}
	want := k.webhooks()
	if reflect.DeepEqual(is.Webhooks, want) {
		return nil
	}
	is = is.DeepCopy()
	is.Webhooks = want
	if _, err := all.Update(ctx, is, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("ValidatingWebhookConfiguration %s: %w", Configuration, err)
	}
	return nil
}

// webhooks is the whole of it, with what the API server would fill in. No namespace is left out:
// Weft enforces the policies of all, and needs none to start.
func (k *Keeper) webhooks() []admissionregistrationv1.ValidatingWebhook {
	url, seconds, scope := k.URL+Path, int32(patience), admissionregistrationv1.AllScopes
	effects, match := admissionregistrationv1.SideEffectClassNone, admissionregistrationv1.Equivalent
	failure := admissionregistrationv1.FailurePolicyType(k.Failure)
	rule := func(group, version string, resources ...string) admissionregistrationv1.RuleWithOperations {
		return admissionregistrationv1.RuleWithOperations{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create, admissionregistrationv1.Update},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: resources, Scope: &scope},
		}
	}
	return []admissionregistrationv1.ValidatingWebhook{{
		Name:         "policies.weft.io",
		ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: k.Bundle()},
		Rules: []admissionregistrationv1.RuleWithOperations{
			rule("networking.k8s.io", "v1", "networkpolicies"),
			rule("cilium.io", "v2", "ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies", "ciliumcidrgroups"),
			rule("weft.io", "v1alpha1", "peers"),
		},
		FailurePolicy: &failure, MatchPolicy: &match, SideEffects: &effects, TimeoutSeconds: &seconds,
		NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{},
		AdmissionReviewVersions: []string{"v1"},
	}}
}
