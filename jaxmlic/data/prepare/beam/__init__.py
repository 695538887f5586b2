"""`jaxmlic data prepare --beam`: images are read, checked and stored by the workers of an Apache Beam runner."""
