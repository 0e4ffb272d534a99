// Pins the Gateway API's CustomResourceDefinitions, which are plain files of the module. Nothing is built of it.
module tulle.dev/tests/apiserver/gateway-api

go 1.24.0

require sigs.k8s.io/gateway-api v1.6.3
