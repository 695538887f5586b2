"""The papers' figures: functions of arrays that return matplotlib figures, and the catalogue of `jaxmlic figures`."""
