"""How the embedded pair "nano" is made: corpus, reading (stage 0), retriever, reranker, export."""
