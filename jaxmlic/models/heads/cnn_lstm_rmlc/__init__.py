"""CNN-LSTM-RMLC (James and Lakshmi), three heads with any loss: "positions", "path" and "plain", without LSTM."""
