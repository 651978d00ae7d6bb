"""Side by side on one machine: no proxy, stock mitmdump, Envoy, and the sidecar; under the same loads, in one run."""
