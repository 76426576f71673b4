from twisted.application.service import ServiceMaker

tkserver = ServiceMaker("tkserver", "tkserver.tap", "Ingestion server for the telemetry-kit SDKs.", "tkserver")
