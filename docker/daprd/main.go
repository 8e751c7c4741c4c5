// daprd with the pub/sub components that fedstac is tested with: in memory, and Kafka.
//
// The runtime and its flags are Dapr's own. Its usual build brings 100 components more, which take a long time to
// compile. A flag that the tests do not use is not passed on here.
package main

import (
	"context"
	"log"
	"os"

	inmemory "github.com/dapr/components-contrib/pubsub/in-memory"
	"github.com/dapr/components-contrib/pubsub/kafka"
	"github.com/dapr/dapr/cmd/daprd/options"
	"github.com/dapr/dapr/pkg/components/bindings"
	"github.com/dapr/dapr/pkg/components/configuration"
	"github.com/dapr/dapr/pkg/components/crypto"
	"github.com/dapr/dapr/pkg/components/lock"
	"github.com/dapr/dapr/pkg/components/middleware/http"
	"github.com/dapr/dapr/pkg/components/nameresolution"
	"github.com/dapr/dapr/pkg/components/pubsub"
	"github.com/dapr/dapr/pkg/components/secretstores"
	"github.com/dapr/dapr/pkg/components/state"
	"github.com/dapr/dapr/pkg/components/wfbackend"
	"github.com/dapr/dapr/pkg/healthz"
	"github.com/dapr/dapr/pkg/metrics"
	"github.com/dapr/dapr/pkg/modes"
	"github.com/dapr/dapr/pkg/runtime"
	"github.com/dapr/dapr/pkg/runtime/registry"
	"github.com/dapr/dapr/pkg/security"
	"github.com/dapr/kit/concurrency"
	"github.com/dapr/kit/logger"
	"github.com/dapr/kit/signals"
)

var daprLog = logger.NewLogger("dapr.runtime")

func main() {
	flags, err := options.New(os.Args[1:])
	if err != nil {
		log.Fatal(err)
	}
	components := logger.NewLogger("dapr.contrib")
	pubsub.DefaultRegistry.Logger, nameresolution.DefaultRegistry.Logger = components, components
	wfbackend.DefaultRegistry.Logger = components
	pubsub.DefaultRegistry.RegisterComponent(inmemory.New, "in-memory")
	pubsub.DefaultRegistry.RegisterComponent(kafka.NewKafka, "kafka")

	ctx, health := signals.Context(), healthz.New()
	provider, err := security.New(ctx, security.Options{
		AppID: flags.AppID, ControlPlaneTrustDomain: flags.ControlPlaneTrustDomain,
		ControlPlaneNamespace: flags.ControlPlaneNamespace, Mode: modes.StandaloneMode, Healthz: health,
	})
	if err != nil {
		log.Fatal(err)
	}
	serve := func(ctx context.Context) error {
		handler, err := provider.Handler(ctx)
		if err != nil {
			return err
		}
		sidecar, err := runtime.FromConfig(ctx, configurationOf(flags, handler, health))
		if err != nil {
			return err
		}
		return sidecar.Run(ctx)
	}
	if err := concurrency.NewRunnerManager(provider.Run, serve).Run(ctx); err != nil {
		log.Fatal(err)
	}
}

func configurationOf(flags *options.Options, handler security.Handler, health healthz.Healthz) *runtime.Config {
	all := registry.NewOptions().
		WithPubSubs(pubsub.DefaultRegistry).WithNameResolutions(nameresolution.DefaultRegistry).
		WithSecretStores(secretstores.DefaultRegistry).WithStateStores(state.DefaultRegistry).
		WithConfigurations(configuration.DefaultRegistry).WithLocks(lock.DefaultRegistry).
		WithBindings(bindings.DefaultRegistry).WithCryptoProviders(crypto.DefaultRegistry).
		WithHTTPMiddlewares(http.DefaultRegistry).
		WithWorkflowBackends(wfbackend.DefaultRegistry)
	return &runtime.Config{
		AppID:                         flags.AppID,
		AppProtocol:                   flags.AppProtocol,
		ApplicationPort:               flags.AppPort,
		AppChannelAddress:             flags.AppChannelAddress,
		AppMaxConcurrency:             flags.AppMaxConcurrency,
		AppHealthCheckPath:            flags.AppHealthCheckPath,
		AppHealthProbeInterval:        flags.AppHealthProbeInterval,
		AppHealthProbeTimeout:         flags.AppHealthProbeTimeout,
		AppHealthThreshold:            flags.AppHealthThreshold,
		AllowedOrigins:                flags.AllowedOrigins,
		DaprAPIGRPCPort:               flags.DaprAPIGRPCPort,
		DaprAPIListenAddresses:        flags.DaprAPIListenAddresses,
		DaprGracefulShutdownSeconds:   flags.DaprGracefulShutdownSeconds,
		DaprHTTPPort:                  flags.DaprHTTPPort,
		DaprInternalGRPCListenAddress: flags.DaprInternalGRPCListenAddress,
		DaprInternalGRPCPort:          flags.DaprInternalGRPCPort,
		Healthz:                       health,
		MaxRequestSize:                flags.MaxRequestSize,
		Metrics:                       metrics.Options{Enabled: flags.Metrics.Enabled(), Log: daprLog, Healthz: health},
		Mode:                          string(modes.StandaloneMode),
		ProfilePort:                   flags.ProfilePort,
		ReadBufferSize:                flags.ReadBufferSize,
		Registry:                      all,
		ResourcesPath:                 flags.ResourcesPath,
		Security:                      handler,
	}
}
