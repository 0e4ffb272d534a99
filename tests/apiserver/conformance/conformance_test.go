// Package conformance is the Gateway API's own conformance suite, as it is, in a program: its flags are the suite's.
package conformance

import (
	"fmt"
	"slices"
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// TestConformance also prints a line at the end of each test of a mesh: its name, its result, and the features that it is about,
// which the suite's own output does not tell. tests/cluster/conformance reads it.
func TestConformance(t *testing.T) {
	options := conformance.DefaultOptions(t)
	options.Hook = func(t *testing.T, test suite.ConformanceTest, _ *suite.ConformanceTestSuite) {
		if !slices.Contains(test.Features, features.SupportMesh) {
			return
		}
		result := "passed"
		switch {
		case t.Failed():
			result = "FAILED"
		case t.Skipped():
			result = "SKIPPED"
		}
		fmt.Println("test of a mesh:", test.ShortName, result, test.Features)
	}
	conformance.RunConformanceWithOptions(t, options)
}
